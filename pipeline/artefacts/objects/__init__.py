"""Write-once objects by key: the protocol, addresses, and one module for each kind of place."""
