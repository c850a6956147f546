package main

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// apiVersion is a version of the Docker API as one number: 1.41 is 1041.
// Zero means that none is known, or none was asked for.
type apiVersion int

// ourLowest is the oldest version that the route table was written for.
const ourLowest = apiVersion(1024)

// parseAPIVersion reads "1.41". Leading zeros, signs and more than three minor digits are refused.
func parseAPIVersion(s string) (apiVersion, error) {
	major, minor, ok := strings.Cut(s, ".")
	a, errA := strconv.ParseUint(major, 10, 8)
	b, errB := strconv.ParseUint(minor, 10, 16)
	zeros := len(major) > 1 && major[0] == '0' || len(minor) > 1 && minor[0] == '0'
	if !ok || errA != nil || errB != nil || b > 999 || zeros {
		return 0, fmt.Errorf("API version %q: expected two numbers with a dot, as in 1.41", s)
	}
	return apiVersion(a*1000 + b), nil
}

func (v apiVersion) String() string {
	if v == 0 {
		return ""
	}
	return fmt.Sprintf("%d.%d", v/1000, v%1000)
}

// clamp brings v into the range an engine speaks; no version asks for its highest.
func (v apiVersion) clamp(lowest, highest apiVersion) apiVersion {
	if v == 0 || v > highest {
		return highest
	}
	return max(v, lowest)
}

// splitVersion cuts /v1.41 off a path. As on an engine, a version is anything of digits
// and dots; "" if the path has none.
func splitVersion(path string) (version, rest string) {
	version, rest, ok := strings.Cut(strings.TrimPrefix(path, "/v"), "/")
	if !ok || !strings.HasPrefix(path, "/v") || version == "" || strings.Trim(version, "0123456789.") != "" {
		return "", path
	}
	return version, "/" + rest
}

// looseVersion reads what splitVersion has cut off as engines do: noughts in front and
// parts behind the second say nothing, what is missing is nought.
func looseVersion(s string) apiVersion {
	major, minor, _ := strings.Cut(s, ".")
	minor, _, _ = strings.Cut(minor, ".")
	a, _ := strconv.Atoi(major) // out of range, it is the largest there is
	b, _ := strconv.Atoi(minor)
	return apiVersion(min(a, 999)*1000 + min(b, 999))
}

// checkVersion refuses versions outside what the fleet speaks, in an engine's words, which
// name it as the client spelt it. No version is never refused.
func checkVersion(spelt string, v, lowest, highest apiVersion) error {
	switch {
	case spelt == "":
		return nil
	case highest != 0 && v > highest:
		return errorf(http.StatusBadRequest, "client version %s is too new. Maximum supported API version is %s", spelt, highest)
	case highest != 0 && v < min(lowest, ourLowest):
		return errorf(http.StatusBadRequest, "client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", spelt, min(lowest, ourLowest))
	}
	if _, err := parseAPIVersion(spelt); err != nil {
		// An engine takes /v01.41.0 for 1.41; whoever keeps watch over paths in front of us may not (S6).
		return errorf(http.StatusNotFound, "page not found")
	}
	return nil
}

// listFields are keys of a container list entry that not every version of the API has.
// Entries are stored as the engine's highest version gives them and cut for older clients.
// Source: the API's version history.
var listFields = []struct {
	key  string     // HostConfig.Annotations is a key within a key
	from apiVersion // first version that has it
}{
	{"Health", 1052},
	{"ImageManifestDescriptor", 1048},
	{"HostConfig.Annotations", 1046},
}

// imageFields are the same for the image list.
var imageFields = []struct {
	key        string
	from, last apiVersion
}{
	{"VirtualSize", 0, 1043},
	{"Descriptor", 1048, 0},
	{"Manifests", 1047, 0},
	{"Identity", 1054, 0},
}
