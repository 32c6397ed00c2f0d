"""What bodies, queries and answers look like: one marshmallow schema each, for checking and for OpenAPI alike."""
