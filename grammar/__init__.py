"""The `.attn` language: grammar, syntax tree, parser, formatter and the prelude."""
