# Where things go: in a wheel, the command among the scripts, the libraries inside the Python package and codecllm.pth at the
# root of site-packages; otherwise bin/ and lib/ of the prefix, where `codecllm run` finds the library beside itself.
if(SKBUILD)
  install(TARGETS codecllm RUNTIME DESTINATION ${SKBUILD_SCRIPTS_DIR} COMPONENT wheel)
  install(TARGETS codecshim cws_shared LIBRARY DESTINATION ${SKBUILD_PLATLIB_DIR}/codecllm COMPONENT wheel)
  install(FILES ${PROJECT_SOURCE_DIR}/shim/python/codecllm.pth DESTINATION ${SKBUILD_PLATLIB_DIR} COMPONENT wheel)
else()
  include(GNUInstallDirs)
  install(TARGETS codecllm RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  install(TARGETS codecshim cws_shared LIBRARY DESTINATION lib) # not lib64 or a multiarch folder: ../lib of the command
endif()
