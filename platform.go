package main

import (
	"slices"
	"strings"

	"github.com/containerd/platforms"
	specs "github.com/opencontainers/image-spec/specs-go/v1"
)

// kernelArchitectures are names that uname has and images do not; engines report uname's.
var kernelArchitectures = map[string]specs.Platform{
	"armv5l": {Architecture: "arm", Variant: "v5"}, "armv6l": {Architecture: "arm", Variant: "v6"},
	"armv7l": {Architecture: "arm", Variant: "v7"}, "armv8l": {Architecture: "arm", Variant: "v8"},
	"i486": {Architecture: "386"}, "i586": {Architecture: "386"}, "i686": {Architecture: "386"},
	"loongarch64": {Architecture: "loong64"},
}

// platformName is the one spelling of a platform: linux/amd64, linux/arm/v7; "" if
// os or architecture is unknown or odd. Engines do not tell the level of their amd64 and
// arm64 processors, so the variants of these are left out.
func platformName(os, architecture, variant string) string {
	if os == "" || architecture == "" {
		return ""
	}
	p := specs.Platform{OS: os, Architecture: architecture, Variant: variant}
	if k, ok := kernelArchitectures[strings.ToLower(architecture)]; ok {
		p.Architecture, p.Variant = k.Architecture, k.Variant
	}
	p = platforms.Normalize(p)
	if p.Architecture == "amd64" || p.Architecture == "arm64" {
		p.Variant = ""
	}
	name := platforms.Format(p)
	if _, err := platforms.Parse(name); err != nil {
		return "" // an engine may say anything
	}
	return name
}

// requestedPlatform reads the parameter platform of a request, such as linux/arm64 or
// x86_64. Without an architecture it is an operating system: linux. What does not
// parse is "", and the engine's to refuse.
func requestedPlatform(text string) string {
	p, err := platforms.Parse(text)
	if err != nil {
		return ""
	}
	if os := strings.ToLower(text); os == p.OS {
		return os
	}
	return platformName(p.OS, p.Architecture, p.Variant)
}

// olderArchitectures are those that some processor runs beside its own.
var olderArchitectures = []string{"386", "arm/v8", "arm/v7", "arm/v6", "arm/v5"}

// runnable lists the platforms that a node runs: its own, the older ones that its
// processor runs as well (amd64 runs 386, arm64 runs arm), and those that its label
// platforms adds, because it emulates them. Empty if its own is not known.
func runnable(os, architecture, label string) []string {
	own := platformName(os, architecture, "")
	if own == "" {
		return []string{}
	}
	list := []string{own}
	runs := platforms.Only(platforms.MustParse(own))
	for _, older := range olderArchitectures {
		name := strings.ToLower(os) + "/" + older
		if runs.Match(platforms.MustParse(name)) && name != own {
			list = append(list, name)
		}
	}
	for _, text := range strings.Split(label, ",") {
		if name := requestedPlatform(strings.TrimSpace(text)); strings.Contains(name, "/") && !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	return list
}

// runsPlatform tells whether a node that runs these platforms, JSON, runs p, which may
// be only an operating system.
func runsPlatform(node, p string) bool {
	if !strings.Contains(p, "/") {
		return strings.HasPrefix(node, `["`+p+"/")
	}
	return strings.Contains(node, `"`+p+`"`)
}
