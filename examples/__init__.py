"""How to use Octet, as programs to run and to copy from. Not installed with the service."""
