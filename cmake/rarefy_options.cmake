# rarefy_add_module(NAME sources...): one layer of the library (design: dependencies point down only). Modules are object
# libraries, gathered into the one library `rarefy` by src/CMakeLists.txt.
function(rarefy_add_module name)
  add_library(rarefy_${name} OBJECT ${ARGN})
  target_include_directories(rarefy_${name} PUBLIC ${PROJECT_SOURCE_DIR}/include PRIVATE ${PROJECT_SOURCE_DIR}/src)
  target_link_libraries(rarefy_${name} PUBLIC OpenMP::OpenMP_CXX PRIVATE rarefy_warnings)
  set_property(GLOBAL APPEND PROPERTY RAREFY_MODULES rarefy_${name})
endfunction()

add_library(rarefy_warnings INTERFACE)
target_compile_options(rarefy_warnings INTERFACE -Wall -Wextra $<$<BOOL:${RAREFY_WERROR}>:-Werror>)
# No contraction of a*b+c behind our back: the same source gives the same bits on every compiler.
target_compile_options(rarefy_warnings INTERFACE -ffp-contract=off)
