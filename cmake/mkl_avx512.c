// MKL asks this function whether the processor is Intel's; the wheel's libtorch_cpu calls it through its symbol table, so a
// program that defines it answers instead. On AMD it doubles fp32 matrix products (docs/performance.md). Off by default.
int mkl_serv_intel_cpu_true(void);
int mkl_serv_intel_cpu_true(void) { return 1; }
