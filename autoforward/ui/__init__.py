"""`autoforward ui`: one page of forwards for the browser, served on loopback to the holder of the token.

`guard` decides who is answered, `keys` holds the secrets, `document` is the page and its headers, `feed` follows the
supervisor, `picture` says what of it the page is told, `server` joins them.
"""
