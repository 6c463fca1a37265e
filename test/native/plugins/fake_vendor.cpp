// Stands for a vendor's library that is not installed; as a plugin, it has no entry point.
extern "C" int fake_vendor_device_count() { return 1; }
