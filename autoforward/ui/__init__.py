"""`autoforward ui`: one page of forwards for the browser, served on loopback to the holder of the token.

`request_guard` decides which requests are answered, `access_token` holds the secrets, `page` is the document and its
headers, `supervisor_feed` follows the supervisor, `page_state` turns its answers into events, `http_server` joins them.
"""
