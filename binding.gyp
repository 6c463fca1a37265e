# For tools that know node-gyp only: hands the work to cmake-js, which leaves its outputs in build/Release.
{
  "targets": [{
    "target_name": "danceflux",
    "type": "none",
    "actions": [{
      "action_name": "cmake_js",
      "inputs": ["CMakeLists.txt"],
      "outputs": ["<(module_root_dir)/build/Release/danceflux.node"],
      "action": [
        "node", "<!(node -p \"require.resolve('cmake-js/bin/cmake-js')\")", "build",
        "-d", "<(module_root_dir)", "-O", "<(module_root_dir)/build/cmake",
        "--CDCMAKE_LIBRARY_OUTPUT_DIRECTORY=<(module_root_dir)/build/Release"
      ]
    }]
  }]
}
