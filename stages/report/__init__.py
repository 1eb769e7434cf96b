"""Parts of `heartcut report`: one self-contained page of charts, tables and pictures."""
