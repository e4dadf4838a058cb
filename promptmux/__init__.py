"""The command line: thin commands over `server`, `trainer`, `backbone`, `prompt_store` and `client`."""
