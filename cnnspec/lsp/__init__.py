"""The language server: `cnnspec lsp`.

Each feature is a function of an `Analysis`, the compiled text of a document, and returns a value of the protocol. Only
`server` knows the connection, threads, and which documents are open.
"""
