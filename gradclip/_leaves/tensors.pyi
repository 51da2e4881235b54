from typing import Any

class DeviceTensor:
    def array(self) -> Any: ...
