"""One suite of environments a file; ``dreamer_lpm.envs.factory.SUITES`` says which ids go to which."""
