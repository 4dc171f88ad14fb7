# rarefy_add_module(NAME sources...): one layer of the library (design: dependencies point down only). Modules are object
# libraries, gathered into the one library `rarefy` by src/CMakeLists.txt.
function(rarefy_add_module name)
  add_library(rarefy_${name} OBJECT ${ARGN})
  target_include_directories(rarefy_${name} PUBLIC ${PROJECT_SOURCE_DIR}/include PRIVATE ${PROJECT_SOURCE_DIR}/src)
  target_link_libraries(rarefy_${name} PUBLIC OpenMP::OpenMP_CXX PRIVATE rarefy_warnings)
  set_property(GLOBAL APPEND PROPERTY RAREFY_MODULES rarefy_${name})
endfunction()

add_library(rarefy_warnings INTERFACE)
target_compile_options(rarefy_warnings INTERFACE
  $<$<COMPILE_LANGUAGE:C,CXX>:-Wall;-Wextra;$<$<BOOL:${RAREFY_WERROR}>:-Werror>>
  $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall;$<$<BOOL:${RAREFY_WERROR}>:-Werror=all-warnings>>)
# No contraction of a*b+c behind our back: the same source gives the same bits on every compiler.
target_compile_options(rarefy_warnings INTERFACE $<$<COMPILE_LANGUAGE:C,CXX>:-ffp-contract=off>)

# Sanitizers go into everything that is compiled here, tests included; a finding ends the program.
set(RAREFY_SANITIZE "" CACHE STRING "Sanitizers for -fsanitize=, e.g. address,undefined")
if(RAREFY_SANITIZE)
  add_compile_options(-fsanitize=${RAREFY_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${RAREFY_SANITIZE})
  # Instrumented loops do not vectorise: clang says so of every `omp simd`.
  add_compile_options($<$<CXX_COMPILER_ID:Clang>:-Wno-pass-failed>)
  # gcc finds uninitialised values in its own <regex> once code is instrumented; -Wmaybe-uninitialized is on in all other builds.
  add_compile_options($<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
endif()

# ccache where it is installed and the caller has not chosen a launcher.
if(PROJECT_IS_TOP_LEVEL AND NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
  find_program(RAREFY_CCACHE ccache)
  mark_as_advanced(RAREFY_CCACHE)
  if(RAREFY_CCACHE)
    set(CMAKE_CXX_COMPILER_LAUNCHER ${RAREFY_CCACHE})
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${RAREFY_CCACHE})
  endif()
endif()
