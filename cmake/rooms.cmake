# cws_room(NAME SOURCES a.c ... [LIBS ...] [PRIVATE ...]): the library of one room, a folder. LIBS are the rooms below it, so that what includes another
# one's header does not link. Includes name files from the root of the repository, or bare within the room.
function(cws_room name)
  cmake_parse_arguments(R "" "" "SOURCES;LIBS;PRIVATE" ${ARGN})
  add_library(${name} STATIC ${R_SOURCES})
  target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PUBLIC cws_flags ${R_LIBS} PRIVATE ${R_PRIVATE})
endfunction()
