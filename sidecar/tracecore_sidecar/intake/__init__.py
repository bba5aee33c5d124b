"""The steps of taking in one OTLP request: its sender, its body, its form, whose it is."""
