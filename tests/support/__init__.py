"""What tests share: fixtures, rigs, stand-ins, engines, clients. No tests."""
