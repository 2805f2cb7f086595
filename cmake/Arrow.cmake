# Apache Arrow's C++ libraries out of the PyPI package pyarrow, as imported targets.
#
#   TROUPE_ARROW/pyarrow/{include,lib*.so.*}    the unpacked wheel (tools/bootstrap build)
#
# Targets: Arrow::arrow, Arrow::compute, Arrow::acero, Arrow::parquet, Arrow::dataset (each with what it needs), Arrow::s3
include_guard(GLOBAL)

file(STRINGS "${CMAKE_SOURCE_DIR}/cmake/versions.env" _line REGEX "^ARROW_VERSION=")
string(REPLACE "ARROW_VERSION=" "" _version "${_line}")
if(DEFINED ENV{TROUPE_ARROW})
  set(_default "$ENV{TROUPE_ARROW}")
elseif(DEFINED ENV{TROUPE_CACHE})
  set(_default "$ENV{TROUPE_CACHE}/arrow-${_version}")
else()
  set(_default "$ENV{HOME}/.cache/troupe/arrow-${_version}")
endif()
set(TROUPE_ARROW "${_default}" CACHE PATH "folder that holds the unpacked pyarrow wheel")

function(_troupe_arrow_library name file)
  file(GLOB _found "${TROUPE_ARROW}/pyarrow/${file}.so.*")
  if(NOT _found)
    message(FATAL_ERROR "No Apache Arrow at TROUPE_ARROW=${TROUPE_ARROW} (pyarrow/${file}.so.* is missing). Run tools/bootstrap build.")
  endif()
  list(GET _found 0 _found)
  add_library(Arrow::${name} SHARED IMPORTED GLOBAL)
  set_target_properties(Arrow::${name} PROPERTIES IMPORTED_LOCATION "${_found}" INTERFACE_LINK_LIBRARIES "${ARGN}")
  target_include_directories(Arrow::${name} SYSTEM INTERFACE "${TROUPE_ARROW}/pyarrow/include")
  # ld.bfd checks the closure of shared libraries; mold and lld do not need this.
  target_link_options(Arrow::${name} INTERFACE "LINKER:-rpath-link,${TROUPE_ARROW}/pyarrow")
endfunction()
_troupe_arrow_library(arrow libarrow)
_troupe_arrow_library(compute libarrow_compute Arrow::arrow)
_troupe_arrow_library(acero libarrow_acero Arrow::compute)
_troupe_arrow_library(parquet libparquet Arrow::compute)
_troupe_arrow_library(dataset libarrow_dataset Arrow::acero Arrow::parquet)
_troupe_arrow_library(s3 libarrow_s3 Arrow::arrow)
message(STATUS "Arrow ${_version} at ${TROUPE_ARROW}")
