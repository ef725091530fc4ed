"""Is this machine ready to train? `checks` looks, `self_test` trains; both give findings with a remedy each."""
