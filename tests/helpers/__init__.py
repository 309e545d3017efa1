"""What several files of tests share: lists of networks, data in released forms, a Hub on loopback and its users."""
