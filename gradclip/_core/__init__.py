"""What every call goes through, whichever engine serves it: options, requests, decisions."""
