"""Live tests against DTLS programs and libraries that are not ours, over loopback."""
