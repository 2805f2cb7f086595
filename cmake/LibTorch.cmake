# LibTorch out of the PyPI wheel, as imported targets: find_package(Torch) of that wheel wants nvcc,
# probes GPUs and puts libtorch_cuda on every link line.
#
#   TROUPE_TORCH/torch/{lib,include}    the unpacked torch wheel
#   TROUPE_TORCH/nvidia/cu13/lib        libcudart.so.13 and libcupti.so.13, which libtorch_cpu needs
#
# Target: libtorch::cpu
include_guard(GLOBAL)

file(STRINGS "${CMAKE_SOURCE_DIR}/cmake/versions.env" _line REGEX "^TORCH_VERSION=")
string(REPLACE "TORCH_VERSION=" "" TROUPE_TORCH_VERSION "${_line}")
if(DEFINED ENV{TROUPE_TORCH})
  set(_default "$ENV{TROUPE_TORCH}")
elseif(DEFINED ENV{TROUPE_CACHE})
  set(_default "$ENV{TROUPE_CACHE}/libtorch-${TROUPE_TORCH_VERSION}")
else()
  set(_default "$ENV{HOME}/.cache/troupe/libtorch-${TROUPE_TORCH_VERSION}")
endif()
set(TROUPE_TORCH "${_default}" CACHE PATH "folder that holds torch/ and nvidia/")

set(_torch "${TROUPE_TORCH}/torch")
if(NOT EXISTS "${_torch}/lib/libtorch_cpu.so")
  message(FATAL_ERROR "No LibTorch at TROUPE_TORCH=${TROUPE_TORCH} (torch/lib/libtorch_cpu.so is missing). "
                      "Run tools/bootstrap, or set TROUPE_TORCH to a LibTorch ${TROUPE_TORCH_VERSION}.")
endif()
set(_found "")
foreach(_part MAJOR MINOR PATCH)
  file(STRINGS "${_torch}/include/torch/headeronly/version.h" _v REGEX "#define TORCH_VERSION_${_part} ")
  string(REGEX MATCH "[0-9]+$" _v "${_v}")
  list(APPEND _found ${_v})
endforeach()
list(JOIN _found "." _found)
if(NOT _found STREQUAL TROUPE_TORCH_VERSION)
  message(FATAL_ERROR "LibTorch at ${TROUPE_TORCH} is ${_found}; Troupe uses autograd's internals and is tested with "
                      "${TROUPE_TORCH_VERSION} only.")
endif()
message(STATUS "LibTorch ${_found} at ${_torch}")

add_library(troupe_torch_c10 SHARED IMPORTED)
set_target_properties(troupe_torch_c10 PROPERTIES IMPORTED_LOCATION "${_torch}/lib/libc10.so")
add_library(troupe_torch_cpu SHARED IMPORTED)
set_target_properties(troupe_torch_cpu PROPERTIES IMPORTED_LOCATION "${_torch}/lib/libtorch_cpu.so")
add_library(libtorch_cpu INTERFACE)
add_library(libtorch::cpu ALIAS libtorch_cpu)
target_include_directories(libtorch_cpu SYSTEM INTERFACE "${_torch}/include" "${_torch}/include/torch/csrc/api/include")
target_compile_definitions(libtorch_cpu INTERFACE USE_DISTRIBUTED USE_C10D_GLOO USE_RPC USE_TENSORPIPE)
target_link_libraries(libtorch_cpu INTERFACE troupe_torch_cpu troupe_torch_c10)
# ld.bfd checks the closure of shared libraries; mold and lld do not need this.
target_link_options(libtorch_cpu INTERFACE "LINKER:-rpath-link,${TROUPE_TORCH}/nvidia/cu13/lib:${_torch}/lib")
