"""The handshake: one object per connection, dropped when the handshake is over."""
