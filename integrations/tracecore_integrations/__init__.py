"""Where TraceCore meets launchers and frameworks."""
