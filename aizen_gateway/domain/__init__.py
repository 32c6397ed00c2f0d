"""What the gateway knows without any I/O: values, the command lifecycle, approval policy, digest, errors."""
