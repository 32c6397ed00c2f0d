"""What happens between instances, and between an instance and its live sockets."""
