"""From syntax tree to Model: names, blocks, calls, arguments, sections."""
