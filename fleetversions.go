package main

// fleetVersions is the range of API versions that the cluster speaks: up to the
// lowest of the engines' highest, from the highest of their lowest. newest is the
// highest that any engine speaks. Ranges that do not overlap give the lowest for both.
type fleetVersions struct{ lowest, highest, newest apiVersion }

// defaultVersion is shown while no engine has answered yet.
const defaultVersion = apiVersion(1041)

// noteVersions finds the range anew if an engine that spoke before, as far as its ping
// told pinged, and now speaks now can have changed it. When ten thousand connect, most
// speak what others do already, and to ask all of them each time would be a hundred
// million looks.
func (ns *nodes) noteVersions(before, pinged, now versionRange) {
	f := ns.fleet.Load()
	same := (before.highest == 0 || before == now) && pinged.highest == now.highest
	if same && now.lowest == f.lowest && f.highest <= now.highest && now.highest <= f.newest {
		return
	}
	ns.countVersions()
}

// countVersions finds the range anew, when an engine has told its own or has gone.
func (ns *nodes) countVersions() {
	var f fleetVersions
	for _, e := range ns.all() {
		low, high := e.versions()
		if high == 0 {
			continue
		}
		f.lowest, f.newest = max(f.lowest, low), max(f.newest, high)
		if f.highest == 0 || high < f.highest {
			f.highest = high
		}
	}
	if f.highest == 0 {
		f = fleetVersions{ourLowest, defaultVersion, defaultVersion}
	}
	f.highest = max(f.lowest, f.highest)
	ns.fleet.Store(&f)
}
