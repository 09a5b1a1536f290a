"""Models from servers and registries, fetched by a child process that holds nothing and may use little."""
