"""Reading, converting and checking weights of every code base that publishes SwinV2; never imports a model."""
