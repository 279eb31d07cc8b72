# Programs that use the stand-in driver as libcuda.so.1 under the preloaded library.
if(CWS_TESTS AND TARGET codecshim AND TARGET cws_standin_driver)
  foreach(name dlsym_first dlsym_second)
    add_library(${name} SHARED ${name}.c)
    target_link_libraries(${name} PRIVATE cws_flags ${CMAKE_DL_LIBS})
  endforeach()

  set(sanitizer_options)
  set(preload $<TARGET_FILE_NAME:codecshim>)
  if(CWS_SANITIZE)
    set(preload "$<TARGET_FILE_NAME:sanitizer_gate>:${preload}")
    # ASan takes the frames on a cancelled thread's stack for live ones, unless they lie elsewhere
    set(sanitizer_options ASAN_OPTIONS=verify_asan_link_order=0:detect_leaks=0:detect_stack_use_after_return=1 CODEC_IO=preadv)
  endif()

  function(cws_cuda_shim_test name budget)
    add_executable(${name} ${name}.c)
    target_include_directories(${name} SYSTEM PRIVATE ${CWS_cmocka_INCLUDE})
    target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
    target_link_libraries(${name} PRIVATE ${CWS_cmocka_LIBRARY} cws_flags Threads::Threads ${CMAKE_DL_LIBS} -Wl,--no-as-needed
      dlsym_first dlsym_second -Wl,--as-needed)
    target_compile_definitions(${name} PRIVATE CWS_BIN_DIR="${PROJECT_BINARY_DIR}")
    add_dependencies(${name} cws_standin_driver cws_standin_nvrtc codecshim codecllm)
    add_test(NAME ${name} COMMAND ${name})
    set_tests_properties(${name} PROPERTIES TIMEOUT ${CWS_HANG_SECONDS} SKIP_RETURN_CODE 77
      ENVIRONMENT "CODEC_VRAM_BUDGET=${budget};CODEC_HOST_BUDGET=96M;LD_LIBRARY_PATH=${PROJECT_BINARY_DIR}/standin:${CMAKE_LIBRARY_OUTPUT_DIRECTORY};XDG_CACHE_HOME=${PROJECT_BINARY_DIR}/standin/cache;LD_PRELOAD=${preload};${sanitizer_options}")
  endfunction()
  cws_cuda_shim_test(test_cuda_shim 40M)
  # The same where nothing stays mapped that is not named: what a program does in the open works there. Not under TSan: each call waits for the device.
  if(NOT CWS_SANITIZE STREQUAL "thread")
    get_test_property(test_cuda_shim ENVIRONMENT environment)
    add_test(NAME test_cuda_shim_strict COMMAND test_cuda_shim)
    set_tests_properties(test_cuda_shim_strict PROPERTIES TIMEOUT ${CWS_HANG_SECONDS} SKIP_RETURN_CODE 77 ENVIRONMENT "CODEC_STRICT=1;${environment}")
  endif()
  cws_cuda_shim_test(test_cuda_shim_loud 40M)
  cws_cuda_shim_test(test_cuda_small 64M)
  cws_cuda_shim_test(test_cuda_budget 64M)
endif()
