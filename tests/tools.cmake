cws_test(NAME test_tool_text SOURCES test_tool_text.c ../tools/json_replace.c ../tools/json_text.c ../tools/say.c ../tools/progress.c
  LIBS cws_store cws_dep_jansson)
cws_test(NAME test_torch_allocator SOURCES test_torch_allocator.c ../tools/torch_allocator.c ../tools/say.c ../tools/progress.c LIBS cws_store)

if(TARGET codecllm)
  cws_test(NAME test_header_memory SOURCES test_header_memory.c sample_model.c LIBS m)
endif()

# Transcript tests of the command: tests/cli/NAME.sh with what it must print.
if(CWS_TESTS AND TARGET codecllm)
  file(GLOB transcripts CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/cli/*.sh)
  foreach(script ${transcripts})
    get_filename_component(name ${script} NAME_WE)
    if(name STREQUAL "run")
      continue()
    endif()
    if(name STREQUAL "run_program" AND CWS_SANITIZE)
      continue() # a preloaded library cannot bring a sanitizer into a program that was built without
    endif()
    add_test(NAME cli_${name} COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/cli/run.sh ${PROJECT_BINARY_DIR} ${name})
    set_tests_properties(cli_${name} PROPERTIES TIMEOUT ${CWS_HANG_SECONDS})
  endforeach()
endif()
