# Compile options that every target of ours shares, and helpers that declare targets in one line.
# Third-party code never sees them: they travel with the interface target expertd_options only.
find_package(Threads REQUIRED)

add_library(expertd_options INTERFACE)
target_include_directories(expertd_options INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(expertd_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wno-unused-parameter -Wno-missing-field-initializers>)
target_link_libraries(expertd_options INTERFACE Threads::Threads)

if(EXPERTD_WERROR)
  target_compile_options(expertd_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  target_compile_options(expertd_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wthread-safety -Werror=thread-safety>)
endif()
if(EXPERTD_SANITIZER)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")  # GCC 12's false alarm on short literals assigned to std::string (its bug 105651)
    target_compile_options(expertd_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-restrict>)
  endif()
  target_compile_options(expertd_options INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${EXPERTD_SANITIZER} -fno-omit-frame-pointer>)
  target_link_options(expertd_options INTERFACE -fsanitize=${EXPERTD_SANITIZER})
  if(EXPERTD_SANITIZER MATCHES "undefined")
    target_compile_options(expertd_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize-recover=undefined>)
  endif()
endif()

# expertd_library(<name> [SHARED] SOURCES ... [PUBLIC libs...] [PRIVATE libs...]): a library `name`, static unless it says so, alias
# expertd::<name without "expertd_">.
function(expertd_library name)
  cmake_parse_arguments(ARG "SHARED" "" "SOURCES;PUBLIC;PRIVATE" ${ARGN})
  set(type STATIC)
  if(ARG_SHARED)
    set(type SHARED)
  endif()
  add_library(${name} ${type} ${ARG_SOURCES})
  string(REGEX REPLACE "^expertd_" "" short ${name})
  add_library(expertd::${short} ALIAS ${name})
  # No <name>_EXPORTS: the objects of both types are the same, and a compiler cache knows them.
  set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE ON DEFINE_SYMBOL "")
  target_link_libraries(${name} PUBLIC ${ARG_PUBLIC} PRIVATE $<BUILD_INTERFACE:expertd_options> ${ARG_PRIVATE})
  target_include_directories(${name} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>)
endfunction()

# expertd_test(<name> SOURCES ... LIBS ... [LABELS ...] [TIMEOUT s] [ARGS ...]): a GoogleTest program, registered with ctest.
# Labels with a meaning: `tsan` (threads of ours and no gRPC: runs under ThreadSanitizer too, target tsan_tests), `no-sanitizer`
# (measures memory or time, or starts processes so often that a sanitizer build cannot), `long` (only with tests/run.sh --long).
# A test's own files are compiled once and run for seconds, so they are not optimised: that would cost CI more than it saves. What
# they test comes from libraries that are.
add_custom_target(tsan_tests)
function(expertd_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;LIBS;LABELS;ARGS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE expertd_options ${ARG_LIBS} GTest::gmock GTest::gtest_main)
  target_compile_options(${name} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-O0>)
  target_compile_definitions(${name} PRIVATE EXPERTD_TEST_DATA="${PROJECT_SOURCE_DIR}/tests/data"
                                             EXPERTD_BIN_DIR="${CMAKE_RUNTIME_OUTPUT_DIRECTORY}")
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_test(NAME ${name} COMMAND ${name} ${ARG_ARGS})
  if("tsan" IN_LIST ARG_LABELS)
    add_dependencies(tsan_tests ${name})
  endif()
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT})
endfunction()

# expertd_bench(<name> SOURCES ... LIBS ...): a program under tests/bench; built, never run by ctest (timings are no assertions).
function(expertd_bench name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE expertd_options ${ARG_LIBS})
endfunction()
