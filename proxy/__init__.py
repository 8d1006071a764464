"""The data path: codecs (`wire`), decisions (`core`), sockets (`net`), registries, control, obs."""
