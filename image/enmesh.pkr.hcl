# The image by Packer: the same Debian, set up by the same script as in image/make, for where images are made that way.
#
#   make image-seat && packer build image/enmesh.pkr.hcl
#
# `image` is one of Debian's own cloud images (genericcloud, qcow2). `make image-seat` fills the folder that is handed
# over, and makes a key for the time of the build.

variable "image" {
  type    = string
  default = "https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-genericcloud-amd64.qcow2"
}

variable "checksum" {
  type    = string
  default = "file:https://cloud.debian.org/images/cloud/bookworm/latest/SHA512SUMS"
}

variable "seat" {
  type    = string
  default = "target/image/seat"
}

variable "accelerator" {
  type    = string
  default = "kvm"
}

# What else QEMU is told. A disk that boots by UEFI alone, such as that of `image/make`, needs a firmware:
# [["-bios", "/usr/share/ovmf/OVMF.fd"]].
variable "qemuargs" {
  type    = list(list(string))
  default = []
}

source "qemu" "debian" {
  iso_url          = var.image
  iso_checksum     = var.checksum
  disk_image       = true
  disk_size        = "4G"
  format           = "qcow2"
  accelerator      = var.accelerator
  qemuargs         = var.qemuargs
  memory           = 1024
  headless         = true
  output_directory = "target/image/packer"
  vm_name          = "enmesh.qcow2"
  ssh_username     = "debian"
  ssh_timeout      = "10m"
  # The way in for the time of the build: user-data on a disk of its own. The script clears it away.
  ssh_private_key_file = "${var.seat}-seed/key"
  cd_files             = ["${var.seat}-seed/meta-data", "${var.seat}-seed/user-data"]
  cd_label             = "cidata"
  shutdown_command     = "sudo poweroff"
}

build {
  sources = ["source.qemu.debian"]

  provisioner "file" {
    source      = "${var.seat}/"
    destination = "/tmp/image"
  }

  provisioner "shell" {
    inline = [
      "cloud-init status --wait",
      "sudo apt-get update",
      "sudo apt-get install --yes --no-install-recommends nftables systemd-resolved libnss-resolve",
      "sudo /tmp/image/provision",
      "rm -r /tmp/image",
    ]
  }
}
