# Writes OUT with the commit that is built, on every build, touching the file only when it changes.
# Use: cmake -DSOURCE_DIR=... -DOUT=... -P build_commit.cmake
set(commit unknown)
set(modified 0)
find_program(git git)
if(git AND EXISTS ${SOURCE_DIR}/.git)
  set(command ${git} -c safe.directory=${SOURCE_DIR} -C ${SOURCE_DIR})
  execute_process(COMMAND ${command} rev-parse --short=12 HEAD OUTPUT_VARIABLE head RESULT_VARIABLE failed
                  OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(NOT failed)
    set(commit ${head})
    # Only what goes into the program.
    execute_process(COMMAND ${command} --no-optional-locks status --porcelain --untracked-files=no -- CMakeLists.txt apps cmake include src
                    OUTPUT_VARIABLE changes ERROR_QUIET)
    if(changes)
      set(modified 1)
    endif()
  endif()
endif()
set(text "#define RAREFY_BUILD_COMMIT \"${commit}\"\n#define RAREFY_BUILD_MODIFIED ${modified}\n")
if(EXISTS ${OUT})
  file(READ ${OUT} before)
endif()
if(NOT "${text}" STREQUAL "${before}")
  file(WRITE ${OUT} "${text}")
endif()
