# What `cmake --install` puts where, as one package with components: find_package(expertd COMPONENTS engine).
#
#   bin/                         expertd, expertd-client (component programs)
#   lib/                         libraries
#   include/expertd/...          public headers, under the paths that our own code includes them by ("kernels/engine.h")
#   lib/cmake/expertd/           expertd-config.cmake and, for each component, its targets expertd::<name>
#
# A component is one export set. Its third-party dependencies stand in expertd-config.cmake.in.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(EXPERTD_PACKAGE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/expertd)

# expertd_install_targets(<component> <targets...>): libraries expertd_<name>, exported as expertd::<name>. To be called once for
# each component, with every static library of ours that they link.
function(expertd_install_targets component)
  foreach(target ${ARGN})
    string(REGEX REPLACE "^expertd_" "" short ${target})
    set_target_properties(${target} PROPERTIES EXPORT_NAME ${short})
    target_include_directories(${target} INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/expertd>)
  endforeach()
  install(TARGETS ${ARGN} EXPORT expertd-${component}
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT ${component}
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT ${component})
  install(EXPORT expertd-${component} FILE expertd-${component}-targets.cmake NAMESPACE expertd::
    DESTINATION ${EXPERTD_PACKAGE_DIR} COMPONENT ${component})
  # Each component is complete alone: whoever installs one of them gets the file that finds it.
  install(FILES ${PROJECT_BINARY_DIR}/cmake/expertd-config.cmake ${PROJECT_BINARY_DIR}/cmake/expertd-config-version.cmake
    DESTINATION ${EXPERTD_PACKAGE_DIR} COMPONENT ${component})
endfunction()

# expertd_install_headers(<component> <folder> <headers...>): headers by their paths below `folder`, which they keep.
function(expertd_install_headers component folder)
  foreach(header ${ARGN})
    get_filename_component(place ${header} DIRECTORY)
    install(FILES ${folder}/${header} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/expertd/${place} COMPONENT ${component})
  endforeach()
endfunction()

configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/expertd-config.cmake.in ${PROJECT_BINARY_DIR}/cmake/expertd-config.cmake
  INSTALL_DESTINATION ${EXPERTD_PACKAGE_DIR})
# Before 1.0 a minor version may change anything.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/cmake/expertd-config-version.cmake COMPATIBILITY SameMinorVersion)
