# The installed package: `find_package(rarefy)` gives rarefy::rarefy (static, C++), rarefy::plugin (headers, for selectors of
# one's own) and, where it is built, rarefy::rarefy_c (shared, the C ABI); `pkg-config rarefy_c` serves other build systems.
# tests/package checks all of them.
include(CMakePackageConfigHelpers)

install(TARGETS rarefy EXPORT rarefy_targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(TARGETS rarefy_plugin EXPORT rarefy_targets)
if(TARGET rarefy_c)
  install(TARGETS rarefy_c EXPORT rarefy_targets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
  # Relative to the file itself, so that `cmake --install --prefix` needs no second configure.
  file(RELATIVE_PATH RAREFY_PC_TO_PREFIX /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
  configure_file(${PROJECT_SOURCE_DIR}/cmake/rarefy_c.pc.in rarefy_c.pc @ONLY)
  install(FILES ${PROJECT_BINARY_DIR}/rarefy_c.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endif()
if(TARGET rarefy_cli)
  install(TARGETS rarefy_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/rarefy DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT rarefy_targets NAMESPACE rarefy:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/rarefy)
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/rarefy-config.cmake.in rarefy-config.cmake
                              INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/rarefy)
# Before 1.0 a minor version may break the interface (docs/guide/versioning.md).
write_basic_package_version_file(rarefy-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/rarefy-config.cmake ${PROJECT_BINARY_DIR}/rarefy-config-version.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/rarefy)
