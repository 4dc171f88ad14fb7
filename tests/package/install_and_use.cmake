# Run by ctest; see CMakeLists.txt.
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE code OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT code EQUAL 0)
    string(JOIN " " line ${ARGN})
    message(FATAL_ERROR "failed (${code}): ${line}\n${output}")
  endif()
  message(STATUS "${output}")
endfunction()

file(REMOVE_RECURSE ${WORK_DIR})
run(${CMAKE_COMMAND} --install ${BUILD_DIR} --prefix ${WORK_DIR}/prefix)
run(${CMAKE_COMMAND} -S ${SOURCE_DIR} -B ${WORK_DIR}/build -G Ninja -DCMAKE_BUILD_TYPE=Release
    -DCMAKE_CXX_COMPILER=${CXX} -DCMAKE_C_COMPILER=${CC} -DCMAKE_PREFIX_PATH=${WORK_DIR}/prefix -DRAREFY_LIBDIR=${LIBDIR})
run(${CMAKE_COMMAND} --build ${WORK_DIR}/build)
run(${WORK_DIR}/build/consumer)
foreach(program c_consumer pkg_config_consumer)
  if(EXISTS ${WORK_DIR}/build/${program})
    run(${WORK_DIR}/build/${program})
  endif()
endforeach()

# Selectors from outside, against the installed headers; the installed program loads them.
foreach(name page_mean int8_codes)
  run(${CMAKE_COMMAND} -S ${SELECTORS_DIR}/${name} -B ${WORK_DIR}/${name} -G Ninja -DCMAKE_BUILD_TYPE=Release
      -DCMAKE_CXX_COMPILER=${CXX} -DCMAKE_C_COMPILER=${CC} -DCMAKE_PREFIX_PATH=${WORK_DIR}/prefix)
  run(${CMAKE_COMMAND} --build ${WORK_DIR}/${name})
  if(EXISTS ${WORK_DIR}/prefix/bin/rarefy)
    run(${WORK_DIR}/prefix/bin/rarefy policy explain "50x index=${name}" --ctx-size 16384
        --plugin ${WORK_DIR}/${name}/${name}.so)
  endif()
endforeach()
