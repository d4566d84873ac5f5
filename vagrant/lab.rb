# What the four labs have in common: the machines of a lab.json, with their user-data. The tests of this repository boot
# the same lab.json, so nothing that sets a machine up may stand here or in a Vagrantfile.

require "json"

module Lab
  # A box with cloud-init, for VirtualBox. The prebuilt image (docs/image.md) is packed into another one.
  STOCK_BOX = "ubuntu/jammy64"
  # Written by vagrant/serve: where the packages of this repository can be had from inside a machine, and their checksums.
  PACKAGES = File.join(__dir__, "packages.env")

  def self.define(folder)
    lab = JSON.parse(File.read(File.join(folder, "lab.json")))
    unless ENV.fetch("VAGRANT_EXPERIMENTAL", "").split(",").intersect?(%w[cloud_init 1])
      abort "Vagrant hands over user-data only when asked to: export VAGRANT_EXPERIMENTAL=cloud_init,disks"
    end
    Vagrant.configure("2") do |config|
      config.vm.box = ENV["LAB_BOX"] || lab["box"] || STOCK_BOX
      config.vm.synced_folder ".", "/vagrant", disabled: true
      lab["machines"].each { |machine| add(config, folder, machine) }
    end
  end

  def self.add(config, folder, machine)
    config.vm.define machine["name"] do |node|
      node.vm.hostname = machine["name"]
      node.vm.network "private_network", ip: machine["address"]
      machine.fetch("forward", {}).each { |host, guest| node.vm.network "forwarded_port", host: host.to_i, guest: guest }
      parts = machine.fetch("installs", []) + machine["parts"]
      parts.each { |part| node.vm.cloud_init content_type: "text/cloud-config", path: File.expand_path(part, folder) }
      if machine["fetches"] && File.exist?(PACKAGES)
        node.vm.cloud_init content_type: "text/cloud-config", inline: first_boot(File.read(PACKAGES))
      end
    end
  end

  # The part cloud-init/from-url.yaml with what is served here.
  def self.first_boot(settings)
    merge = { "merge_how" => "list(append)+dict(no_replace,recurse_list)+str()" }
    files = [{ "path" => "/etc/enmesh/first-boot.env", "content" => settings }]
    "#cloud-config\n" + JSON.generate(merge.merge("write_files" => files))
  end
end
