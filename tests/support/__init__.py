"""What the tests and the demo share: nodes made of namespaces, processes, servers."""
