{
  "target_defaults": {
    "include_dirs": ["."],
    "defines": ["_GNU_SOURCE", "_FILE_OFFSET_BITS=64"],
    "cflags_cc!": ["-std=gnu++17"],
    "cflags": ["-fvisibility=hidden"],
    "cflags_cc": ["-std=c++20", "-Wall", "-Wextra", "-Werror"]
  },
  "targets": [
    {
      # The code that the addon and the monitor share, compiled once, with exceptions because the
      # monitor needs them. scripts/native-build makes the units.
      "target_name": "pcow-engine",
      "type": "static_library",
      "sources": ["<!@(ls build/units/engine*.cc build/units/attach.cc)"],
      "cflags": ["-fPIC"],
      "cflags_cc!": ["-fno-exceptions"],
      "cflags_cc": ["-fexceptions"]
    },
    {
      "target_name": "pcow",
      "dependencies": ["pcow-engine"],
      "sources": ["build/units/addon.cc", "build/units/store.cc"],
      "defines": ["NAPI_VERSION=8", "NAPI_DISABLE_CPP_EXCEPTIONS", "NODE_ADDON_API_DISABLE_DEPRECATED", "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS"],
      "cflags_cc": [
        "-isystem <!(node -p \"path.dirname(require.resolve('node-addon-api/package.json'))\")",
        "-isystem <!(node -p \"path.join(path.dirname(require.resolve('fuse-shared-library-linux/package.json')), 'libfuse/include')\")"
      ],
      "libraries": ["-ldl", "-lpthread", "-lzstd"]
    },
    {
      "target_name": "pcow-monitor",
      "type": "loadable_module",
      "dependencies": ["pcow-engine"],
      "target_conditions": [["_target_name == 'pcow-monitor'", {"product_prefix": "lib", "product_extension": "so"}]],
      "sources": ["build/units/monitor.cc", "monitor/hooks.cc", "monitor/heap.cc"],
      # With exceptions: if a thread of the application is cancelled in an interposed function, it
      # unwinds through this function.
      "cflags_cc!": ["-fno-exceptions"],
      "cflags_cc": ["-fexceptions"],
      "ldflags": ["-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL", "-Wl,--version-script=<!(pwd)/monitor/exports.version"],
      "libraries": ["-lpthread"]
    }
  ]
}
