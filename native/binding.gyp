{
  "targets": [
    {
      "target_name": "pcow",
      "sources": [
        "<!@(node -p \"['engine', 'addon'].flatMap((dir) => fs.readdirSync(dir).filter((name) => name.endsWith('.cc')).sort().map((name) => dir + '/' + name)).join(' ')\")",
        "monitor/fault_descriptor.cc",
        "monitor/packet.cc"
      ],
      "include_dirs": ["."],
      "defines": ["NAPI_VERSION=8", "NAPI_DISABLE_CPP_EXCEPTIONS", "NODE_ADDON_API_DISABLE_DEPRECATED", "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS", "_GNU_SOURCE", "_FILE_OFFSET_BITS=64"],
      "cflags_cc!": ["-std=gnu++17"],
      "cflags": ["-fvisibility=hidden"],
      "cflags_cc": [
        "-std=c++20",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-isystem <!(node -p \"path.dirname(require.resolve('node-addon-api/package.json'))\")",
        "-isystem <!(node -p \"path.join(path.dirname(require.resolve('fuse-shared-library-linux/package.json')), 'libfuse/include')\")"
      ],
      "libraries": ["-ldl", "-lpthread"]
    },
    {
      "target_name": "pcow-monitor",
      "target_conditions": [["_target_name == 'pcow-monitor'", {"product_prefix": "lib", "product_extension": "so"}]],
      "sources": [
        "<!@(node -p \"['engine', 'monitor'].flatMap((dir) => fs.readdirSync(dir).filter((name) => name.endsWith('.cc')).sort().map((name) => dir + '/' + name)).join(' ')\")"
      ],
      "defines": ["_GNU_SOURCE", "_FILE_OFFSET_BITS=64"],
      # With exceptions: a thread of the application that is cancelled in one of the interposed functions unwinds through it.
      "cflags_cc!": ["-std=gnu++17", "-fno-exceptions"],
      "cflags": ["-fvisibility=hidden"],
      "cflags_cc": ["-std=c++20", "-fexceptions", "-Wall", "-Wextra", "-Werror"],
      "ldflags": ["-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL"],
      "libraries": ["-lpthread"]
    }
  ]
}
