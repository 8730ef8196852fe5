# What a program needs that builds against the library: headers, find_package(ouro), pkg-config.
include(CMakePackageConfigHelpers)

set(ouro_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/ouro")
install(TARGETS ouro EXPORT ouroTargets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY include/ouro DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h*")
install(EXPORT ouroTargets NAMESPACE ouro:: DESTINATION ${ouro_package_dir})
configure_package_config_file(cmake/ouroConfig.cmake.in
  "${CMAKE_CURRENT_BINARY_DIR}/ouroConfig.cmake" INSTALL_DESTINATION ${ouro_package_dir})
# Before 1.0 a minor version may break what was.
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/ouroConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion)
install(FILES
  "${CMAKE_CURRENT_BINARY_DIR}/ouroConfig.cmake"
  "${CMAKE_CURRENT_BINARY_DIR}/ouroConfigVersion.cmake"
  DESTINATION ${ouro_package_dir})
if(OURO_TENSORRT AND NOT BUILD_SHARED_LIBS)
  install(FILES cmake/FindTensorRT.cmake DESTINATION ${ouro_package_dir})
endif()

# A static library leaves it to its user to link what it stands on; a shared one brings it along.
set(ouro_libs "")
set(ouro_requires "")
if(NOT BUILD_SHARED_LIBS)
  set(ouro_libs " -lstdc++ -lpthread -ldl")
  set(ouro_requires libcrypto)
endif()
configure_file(cmake/ouro.pc.in "${CMAKE_CURRENT_BINARY_DIR}/ouro.pc" @ONLY)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/ouro.pc"
  DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
install(FILES "${CMAKE_CURRENT_SOURCE_DIR}/../../LICENSE" DESTINATION ${CMAKE_INSTALL_DOCDIR})
