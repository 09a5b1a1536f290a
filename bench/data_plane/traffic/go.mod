// Engines that cost next to nothing, and clients that measure: both ends of the data plane's benchmark.
module llmrouter.dev/bench/traffic

go 1.24.0
