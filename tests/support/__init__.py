"""What tests share: the real servers they run against and the parts they drive the gateway with."""
