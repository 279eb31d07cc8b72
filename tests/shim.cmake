# Programs run under the preloaded library, on the small model packed and plain; those that touch views, on every rung.
if(CWS_TESTS AND TARGET codecshim AND NOT CWS_SANITIZE)
  set(plain ${CMAKE_CURRENT_SOURCE_DIR}/models/bard/model.safetensors)
  set(packed ${CMAKE_CURRENT_BINARY_DIR}/shim_model.safetensors)
  add_test(NAME shim_pack COMMAND sh -c "rm -f '${packed}'; '$<TARGET_FILE:codecllm>' pack --quiet '${plain}' '${packed}'")
  set_tests_properties(shim_pack PROPERTIES FIXTURES_SETUP shim_model)

  function(cws_shim_test name)
    add_executable(${name} ${name}.c)
    target_include_directories(${name} SYSTEM PRIVATE ${CWS_cmocka_INCLUDE})
    target_compile_options(${name} PRIVATE -U_FORTIFY_SOURCE)
    target_link_libraries(${name} PRIVATE ${CWS_cmocka_LIBRARY} cws_flags Threads::Threads ${CMAKE_DL_LIBS})
    foreach(rung ${ARGN})
      set(test ${name}_${rung})
      add_test(NAME ${test} COMMAND ${name})
      set(environment CWS_SHIM_PACKED=${packed} CWS_SHIM_PLAIN=${plain} CODEC_VRAM_BUDGET=2M CODEC_PAGER=${rung}
        LD_PRELOAD=$<TARGET_FILE:codecshim>)
      set_tests_properties(${test} PROPERTIES TIMEOUT 100 SKIP_RETURN_CODE 77 FIXTURES_REQUIRED shim_model
        ENVIRONMENT "${environment}")
    endforeach()
  endfunction()

  cws_shim_test(test_shim_files uffd-dev sigsegv)
  cws_shim_test(test_shim_views uffd-dev uffd uffd-user sigsegv eager)
  cws_shim_test(test_shim_process uffd-dev uffd-user sigsegv eager)
  if(CWS_STATIC_DEPS)
    add_test(NAME shim_exports COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/shim_exports.sh $<TARGET_FILE:codecshim>
      ${PROJECT_SOURCE_DIR}/shim/hooks.def)
  endif()
endif()
