include_guard(GLOBAL)

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
list(APPEND CMAKE_BUILD_RPATH "${CMAKE_BINARY_DIR}/lib")  # plug-ins, which are loaded by name
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()

find_program(TROUPE_CCACHE ccache)
if(TROUPE_CCACHE)
  # One cache for every checkout: paths below the source tree are stored relative to it.
  set(_launcher ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1 ${TROUPE_CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${_launcher})
  set(CMAKE_C_COMPILER_LAUNCHER ${_launcher})
endif()
find_program(TROUPE_MOLD mold)
if(TROUPE_MOLD)
  add_link_options(-fuse-ld=mold)
endif()

# $<LINK_LIBRARY:troupe_as_needed,lib>: loaded only by programs that use a symbol of it.
set(CMAKE_LINK_LIBRARY_USING_troupe_as_needed "LINKER:--push-state,--as-needed" "<LINK_ITEM>" "LINKER:--pop-state")
set(CMAKE_LINK_LIBRARY_USING_troupe_as_needed_SUPPORTED TRUE)

# LibTorch translation units take up to 1.6 GB each: never more than two at once.
set_property(GLOBAL PROPERTY JOB_POOLS torch=2)

add_library(troupe_flags INTERFACE)
target_compile_options(troupe_flags INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Wno-restrict -g1)  # GCC 12 misfires -Wrestrict on strings

set(TROUPE_SANITIZE "" CACHE STRING "address or thread")
if(TROUPE_SANITIZE STREQUAL "address")
  # CAF 0.17 templates bind null references: that one check is off.
  add_compile_options(-fsanitize=address,undefined -fno-sanitize=null -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
elseif(TROUPE_SANITIZE STREQUAL "thread")
  add_compile_options(-fsanitize=thread)
  add_link_options(-fsanitize=thread)
endif()

# troupe_library(NAME [TORCH] FOLDER dir INCLUDE root LINK libs...)
# A static library of every source in FOLDER (not in folders below it).
function(troupe_library name)
  cmake_parse_arguments(A "TORCH" "FOLDER;INCLUDE" "LINK" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${A_FOLDER}/*.cpp)
  if(sources)
    add_library(${name} STATIC ${sources})
    target_include_directories(${name} PUBLIC ${A_INCLUDE} PRIVATE ${A_FOLDER})
    target_link_libraries(${name} PUBLIC ${A_LINK} PRIVATE troupe_flags)
    if(A_TORCH)
      target_link_libraries(${name} PUBLIC libtorch::cpu)
      set_target_properties(${name} PROPERTIES JOB_POOL_COMPILE torch)
    endif()
  else()
    add_library(${name} INTERFACE)
    target_include_directories(${name} INTERFACE ${A_INCLUDE})
    target_link_libraries(${name} INTERFACE ${A_LINK})
    if(A_TORCH)
      target_link_libraries(${name} INTERFACE libtorch::cpu)
    endif()
  endif()
endfunction()
