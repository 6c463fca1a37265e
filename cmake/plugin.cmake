# danceflux_add_plugin(NAME sources...): a backend opened at run time, danceflux_NAME.so, beside the addon.
# It links the core; what it needs of a vendor it links itself, by
#   target_link_libraries(danceflux_NAME PRIVATE ...)
function(danceflux_add_plugin name)
  add_library(danceflux_${name} MODULE ${ARGN})
  set_target_properties(danceflux_${name} PROPERTIES PREFIX "" SUFFIX ".so")
  target_link_libraries(danceflux_${name} PRIVATE danceflux_core)
  danceflux_compile(danceflux_${name})
  danceflux_runtime(danceflux_${name})
endfunction()
